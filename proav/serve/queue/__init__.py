"""Jobs from their acceptance to their end: kept, queued, batched, sent to samplers.

It knows no Ray, and of HTTP only the errors of `front/api_error.py`.
"""
