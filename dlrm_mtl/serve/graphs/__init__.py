"""A bundle's model as one graph, for servers of others: a program of torch.export, an AOTInductor package, or ONNX."""
