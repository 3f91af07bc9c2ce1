import os
import socket

from serve_app.cli.ports import choose_free, holder, is_free


def test_a_port_with_a_listener_is_not_free_and_names_its_holder() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert not is_free(port)
        assert f"(pid {os.getpid()})" in holder(port)
    assert is_free(port)


def test_a_listener_on_all_interfaces_takes_the_port_on_loopback_too() -> None:
    with socket.create_server(("0.0.0.0", 0)) as server:
        assert not is_free(server.getsockname()[1])


def test_a_port_without_a_visible_holder_is_said_to_be_of_another_user() -> None:
    (port,) = choose_free(1)
    assert holder(port) == "a process of another user"


def test_chosen_ports_differ_and_leave_out_the_taken_one() -> None:
    taken = frozenset(choose_free(1))
    chosen = choose_free(20, taken=taken)
    assert len(set(chosen)) == 20
    assert not taken & set(chosen)
    assert all(is_free(port) for port in chosen)
