"""What the families of APIs have of their own: controlled names, prompts, objects, shapes of refusals."""
