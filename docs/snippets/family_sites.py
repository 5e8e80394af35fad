"""What a network sees of a site with another gain: by pooled statistics, and by the site's own."""

import torch

import mednorm

torch.manual_seed(0)
GAIN = {"Basel": 1.0, "Lund": 3.0}


def batch(site: str, images: int) -> torch.Tensor:
    return GAIN[site] * torch.randn(images, 1, 32, 32)


pooled, by_site = mednorm.BatchNorm(1), mednorm.DomainBatchNorm(1, domains=list(GAIN))
for _ in range(100):
    images = torch.cat([batch("Basel", 4), batch("Lund", 4)])
    pooled(images)
    with mednorm.domain(by_site, ["Basel"] * 4 + ["Lund"] * 4):
        by_site(images)

pooled.eval(), by_site.eval()
for site in GAIN:
    images = batch(site, 64)
    with mednorm.domain(by_site, [site] * 64):
        own = by_site(images).std()
    print(f"{site}: std {pooled(images).std():.2f} by pooled statistics, {own:.2f} by its own")
print(f"A site never seen: {by_site(batch('Lund', 64)).std():.2f}, by the pooled ones")
