"""How other services take part: a consumer of our events, and essays to try it with."""
