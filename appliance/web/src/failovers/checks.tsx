/** The checks of a test failover and what came of each. */
import { Card, CardBody, CardTitle } from '@patternfly/react-core';
import type { TestCheckResult } from '../../../api/schema.ts';
import { CHECK_WORDS } from '../jobs/test-checks.ts';
import { StateLabel } from '../parts/parts.tsx';

export function ChecksCard(props: { checks: TestCheckResult[] }) {
  return (
    <Card id="failover-checks">
      <CardTitle component="h2">Checks</CardTitle>
      <CardBody className="und-stack">
        {props.checks.map(({ name, state, words, how, output }) => (
          <div key={name} data-testid="test-check" data-name={name} data-state={state}>
            <strong>{name}</strong>{' '}
            <StateLabel tone={CHECK_WORDS[state].tone} state={state}>
              {CHECK_WORDS[state].label}
            </StateLabel>
            <div>{words}</div>
            {output && <pre className="und-output">{output}</pre>}
            <div className="und-quiet">{how}</div>
          </div>
        ))}
      </CardBody>
    </Card>
  );
}
