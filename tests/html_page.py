"""Reads a page as a browser's parser does."""

from html.parser import HTMLParser


class Seen(HTMLParser):
    """Collects elements and text, and checks that each element that is opened is closed."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.text = [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, text):
        self.text.append(text)

    @property
    def tags(self):
        return [tag for tag, _ in self.elements]

    @property
    def said(self):
        return " ".join(" ".join(self.text).split())
