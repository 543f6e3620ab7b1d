"""One run: a cell on a task, through lm-eval. What decides its numbers is here and in what it imports."""
