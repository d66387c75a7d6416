"""What is wrong with one item of a dataset."""


class BadItemError(ValueError):
    """An item that cannot be used.

    Attributes:
        reason: a short fixed phrase by which items are counted ("corrupt image").
        detail: what the decoder said about this one.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple:
        # The default sends only the message: pickling (from a worker to the training process) would lose the parts.
        return type(self), (self.reason, self.detail)
