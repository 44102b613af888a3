"""A bag through the policies, once: inputs, inference in blocks, what-ifs, scores."""
