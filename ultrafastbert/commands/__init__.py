"""Commands that are no more than their options and a call: a module each, with a dataclass and a function."""
