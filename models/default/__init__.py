"""The built-in backbone's weights and config; `models.lift.backbone` loads them as `default`."""
