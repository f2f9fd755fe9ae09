"""One page that shows what runs did."""
