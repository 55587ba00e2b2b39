"""`tollkeeper import litellm`: another gateway's configuration as files of ours."""
