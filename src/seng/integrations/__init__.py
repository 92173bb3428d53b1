"""Natural gradients in the training loops of other libraries, one module a library.

their closure -> residuals (with their graph) -> rows, one by point -> the engine of ``seng.func``
"""
