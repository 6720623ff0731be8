"""A newcomer fetches the state of a job from those who have it."""
