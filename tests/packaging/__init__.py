"""What is released: the wheel and the sdist, and how they do in bare environments."""
