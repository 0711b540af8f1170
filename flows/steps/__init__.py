"""The steps that flows are made of: each submits its tasks, waits for all, and says where the result is."""
