"""unclip-serve: an HTTP server that speaks OpenAI's Images API, and a page to draw on."""
