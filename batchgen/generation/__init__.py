"""What generating means, as data: tasks, samplers, parameters, prompt syntax. No tensors."""
