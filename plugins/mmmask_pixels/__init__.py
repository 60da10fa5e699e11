"""What images and videos share: crops, statistics, limits, pictures. No component and no hook."""
