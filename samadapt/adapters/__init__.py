"""What happens to an adapter: injection into a model, saving, loading, checking, describing."""
