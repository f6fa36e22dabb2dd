"""Signs of life: what workers and beats say of themselves in Redis, and who reads it."""
