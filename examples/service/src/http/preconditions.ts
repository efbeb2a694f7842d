/** If-Match (RFC 9110, section 13.1.1): a change is made to the state that its maker has seen, or not at all. */
import { HttpProblem } from './problems.ts';

/**
 * @param ifMatch the states that the caller names; `null`: any
 * @throws HttpProblem `precondition_failed`
 */
export function demandMatch(ifMatch: readonly string[] | null, etag: string): void {
  if (ifMatch !== null && !ifMatch.includes(etag)) {
    throw new HttpProblem('precondition_failed', 'It was changed meanwhile: read it again, and change what is there now.');
  }
}
