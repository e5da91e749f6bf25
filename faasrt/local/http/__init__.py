"""The HTTP server of the embedded FaaS: routes, access, limits, admission, and its protocol."""
