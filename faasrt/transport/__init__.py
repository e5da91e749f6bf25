"""How a request gets to a server and an answer back: sessions, permits, deadlines."""
