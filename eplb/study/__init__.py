"""What needs several parts of the library at once: back-tests, the knee of redundancy."""
