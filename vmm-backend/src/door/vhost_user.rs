//! The vhost-user connection: memory, rings and one worker per queue.
