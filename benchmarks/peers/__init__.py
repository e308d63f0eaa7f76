"""The same graph behind other servers, and what each makes of it: python -m benchmarks.peers."""
