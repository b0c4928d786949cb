"""Reports for operators: the doctor, the memory bound, and tuning."""
