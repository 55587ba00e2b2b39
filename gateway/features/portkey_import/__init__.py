"""`tollkeeper import portkey`: another gateway's policies as budgets of ours."""
