"""Ask language models: one client, one store of requests and replies, one runner.

Depends on: ``files``; used by: curation, which has questions written, and the judge of answers.
Free of torch; the package ``openai`` is imported when a server is asked.
"""
