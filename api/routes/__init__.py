"""What the API answers, one group of paths a module. Each adds its own to the app, with what OpenAPI says of them."""
