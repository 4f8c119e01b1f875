"""Jobs from their acceptance to their end: kept, queued, batched, sent to samplers. It knows neither HTTP nor Ray."""
