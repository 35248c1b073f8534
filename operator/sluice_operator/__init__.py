"""The operator: turns ProviderLimits objects into what the gates of their namespace decide by."""
