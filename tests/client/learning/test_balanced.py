"""Rates that follow the lengths of channels."""

import torch

from client.learning.balanced import rates


def test_of_a_matrix_that_is_balanced_it_is_the_rows_squared_length() -> None:
    weight = torch.tensor([[1.0, -2.0], [2.0, 1.0]])
    torch.testing.assert_close(rates(weight), torch.full((2, 2), 5.0))
    kernels = weight[:, :, None, None].expand(2, 2, 3, 3)  # nine times as much
    torch.testing.assert_close(rates(kernels), torch.full((2, 2, 1, 1), 45.0))
    torch.testing.assert_close(
        rates(torch.tensor([3.0, -0.5, 0.0])), torch.tensor([9.0, 0.25, 0.0])
    )


def test_a_row_or_a_column_that_is_longer_has_its_square_more() -> None:
    draws = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 4, 3, 3, generator=draws)
    rows, columns = (torch.logspace(-2, 2, n)[torch.randperm(n, generator=draws)] for n in (6, 4))
    longer = weight * rows[:, None, None, None] * columns[None, :, None, None]
    wanted = rates(weight) * (rows[:, None] * columns[None])[..., None, None] ** 2
    torch.testing.assert_close(rates(longer), wanted, rtol=1e-3, atol=0.0)


def test_the_balance_is_what_it_says() -> None:
    weight = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).double()
    share = weight.square() / rates(weight)
    torch.testing.assert_close(share.sum(1), torch.ones(5).double())
    torch.testing.assert_close(share.sum(0), torch.full((3,), 5 / 3).double())


def test_where_there_is_nothing_nothing_moves() -> None:
    weight = torch.zeros(3, 2)
    weight[0] = 1.0
    found = rates(weight)
    assert torch.isfinite(found).all()
    assert found[0].min() > 0
    assert found[1:].max() == 0
    assert rates(torch.zeros(3, 2)).max() == 0


def test_channels_of_zeros_change_no_other_s_rate() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(2))
    wider = torch.zeros(6, 4, 3, 3)
    rows, columns = torch.tensor([0, 1, 3, 5]), torch.tensor([0, 2, 3])
    wider[rows[:, None], columns] = weight
    found = rates(wider)
    torch.testing.assert_close(found[rows][:, columns], rates(weight))
    assert int((found > 0).sum()) == 12
