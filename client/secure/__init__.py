"""Sums only: what nodes send is masked so that the coordinator learns the sum and no part of it.

Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning", CCS 2017,
https://doi.org/10.1145/3133956.3133982, for messages of any kind. In order of the protocol:

    context       what one sum is about; its hash is in every derived key
    identity      the site's own key, and those of its peers that it pinned
    keys          ephemeral key pairs, what is derived from them, sealing, signatures
    shares        a node's two secrets, shared among its peers
    fixed_point   numbers as integers mod 2^64
    vector        an answer as one vector of them, and a sum of vectors as an answer
    masks         the streams that hide a vector
    member        one node's part, from its keys to the shares that it reveals
    aggregations  that part on disk, until it ends
    work          the answer to a message, masked

Departs from the paper: its form against active adversaries, always; and a node takes no part in two
sums with the same weights whose nodes differ by a few, because both would tell those few's.
"""
