"""Name lookups: DNS messages, matching of answers with questions, and the names of addresses."""
