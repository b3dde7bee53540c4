"""What is known of TPUs without having one: chips, their compiler, and the reading of what it made."""
