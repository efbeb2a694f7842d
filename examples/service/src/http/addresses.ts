/** Addresses as people write them. */
import { ipMatcher } from '@keyguard/server-verifier/ip';

/** Whether `entry` is an IP address or a CIDR range. */
export function isAddressRange(entry: string): boolean {
  try {
    ipMatcher([entry]);
    return true;
  } catch {
    return false;
  }
}
