"""What prompts and channels will do, looked at before and beside a batch."""
