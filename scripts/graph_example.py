"""Your own PyTorch Geometric model on the graphs of attention.

    python scripts/graph_example.py data/traces/smollm2_worldfacts.zarr

Needs a store that ``graphhalu extract`` made; labels are made if there are none.
"""

import argparse

import torch
from torch_geometric.loader import DataLoader
from torch_geometric.nn import GINEConv, global_mean_pool

from graphhalu import AttentionGraphs, TopK, open_traces
from graphhalu.labels.run import named_labels


class MyModel(torch.nn.Module):
    """Two rounds of messages that carry the attention of every head, then a mean over tokens."""

    def __init__(self, n_features: int, n_channels: int, hidden_size: int = 32) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(n_features)
        self.inward = torch.nn.Linear(n_features, hidden_size)
        self.rounds = torch.nn.ModuleList(
            GINEConv(torch.nn.Linear(hidden_size, hidden_size), edge_dim=n_channels) for _ in range(2)
        )
        self.outward = torch.nn.Linear(hidden_size, 1)

    def forward(self, data):
        x = self.inward(self.norm(data.x))
        for layer in self.rounds:
            x = x + layer(x.relu(), data.edge_index, data.edge_attr)
        return self.outward(global_mean_pool(x, data.batch)).squeeze(-1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model of your own on token graphs.")
    parser.add_argument("store")
    parser.add_argument("--labeller", default="match")
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()

    torch.manual_seed(0)
    traces = open_traces(options.store)
    labels = named_labels(traces, options.labeller)
    graphs = AttentionGraphs(traces, labels=labels, edges=TopK(8)).labelled()
    train, _, test = graphs.split(seed=0)  # by question, never by graph
    print(graphs[0], graphs.stats(), sep="\n")

    model = MyModel(graphs[0].num_node_features, graphs[0].num_edge_features)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for epoch in range(options.epochs):
        losses = []
        for batch in DataLoader(train, batch_size=64, shuffle=True):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(batch), batch.y)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}")

    model.eval()
    with torch.inference_mode():
        batches = list(DataLoader(test, batch_size=64))
        scores = torch.cat([model(batch) for batch in batches])
        truth = torch.cat([batch.y for batch in batches]) == 1
    higher = (scores[truth][:, None] > scores[~truth]).float().mean().item()
    print(f"AUROC over {len(scores)} graphs of unseen questions: {higher:.3f}")


if __name__ == "__main__":
    main()
