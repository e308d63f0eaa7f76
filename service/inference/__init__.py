"""The model in service: admission, decoding, batches for the device, readiness."""
