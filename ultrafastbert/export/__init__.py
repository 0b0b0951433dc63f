"""Models for use without this package: on the Hub, in ONNX Runtime, in C++, in sentence-transformers."""
