"""`tollkeeper import openrouter`: another gateway's guardrails as budgets and lists of models of ours."""
