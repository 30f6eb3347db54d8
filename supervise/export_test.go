package supervise

// MountsBelow is [mountsBelow].
var MountsBelow = mountsBelow
