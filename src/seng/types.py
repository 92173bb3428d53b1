"""What layers of your own may return beside tensors."""

from .per_sample import Grads, Lookup, Product, Rows

__all__ = ["Grads", "Lookup", "Product", "Rows"]
