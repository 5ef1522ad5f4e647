"""CoFARS: retrieval from long histories by context (Feng et al., WWW '24 Companion)."""
