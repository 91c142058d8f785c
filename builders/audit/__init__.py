"""What an image weighs and holds: budgets, owners, findings, differences."""
