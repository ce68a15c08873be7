"""What authors of parts need to test them: tiny models, several processes on one machine, conformance suites."""
