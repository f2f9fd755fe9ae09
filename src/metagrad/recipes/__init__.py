"""One recipe a published figure or table: what is computed, apart from how a command shows it."""
