//! Gives up power, once, before serving.
