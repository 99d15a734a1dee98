"""Answers to rows of questions, written so that a run can be killed, shared among processes and resumed."""
