"""Examples for other services: a consumer of our events, and essays to send."""
